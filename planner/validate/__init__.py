"""The planner judged by steps that others measured: what is fitted on which rows, and how far off it is on others."""
