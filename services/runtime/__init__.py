"""What every service process is made of: server, interceptors, settings, logs. Knows no domain."""
