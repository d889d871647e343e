"""Planning: a pure function of donors, edits and calibration to a plan with its reasons."""
