"""Calibrates a model: measures what each depth of reuse costs, for the planner."""

# Forms of the option --judge. Defined here because the command must not import the judges, which load torch.
JUDGES = "reference|world|clip:FOLDER|command:COMMAND"
