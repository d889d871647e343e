"""Runs the migrations on the connection that `database.migrate` passes; Alembic executes this file."""

from alembic import context

from services.scheduler.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
