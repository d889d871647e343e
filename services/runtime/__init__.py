"""Runtime of every service process: server, interceptors, settings, logs. Contains no domain logic."""
