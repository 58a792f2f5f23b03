"""Last, whatever happened: close the run's record."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def finish(status: dsl.PipelineTaskFinalStatus, last: str):
    """Set the state of the MLflow run all steps logged under.

    Args:
        status: how the pipeline ended, filled in by Kubeflow.
        last: the step that a pipeline which succeeded has finished; empty where there is none that
            every run does.
    """
    from toolwise.steps import finish_run

    finish_run(status.state, status.error_message or "", last)
