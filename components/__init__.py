"""The pipeline's steps as typed Kubeflow Pipelines components, one folder each.

A component is a contract (what goes in, what comes out, as typed artifacts) and one call of
`toolwise.steps.run_step`, which does the same for the command line.
"""

BASE_IMAGE = "python:3.11"
"""Image a component names by itself; a cluster profile puts its own in (`cluster.image`)."""
