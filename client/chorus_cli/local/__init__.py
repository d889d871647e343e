"""Services on this machine: started, supervised and stopped by `chorus up`."""
