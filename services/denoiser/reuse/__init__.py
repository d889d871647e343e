"""The method of the paper: the stages of a plan, region finders and amplified attention."""
