"""Connection to S3, for the services that keep objects in a bucket: the cache and the scheduler."""
