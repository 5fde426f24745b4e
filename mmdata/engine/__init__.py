"""The engine: tasks, workers, the scheduler, the run folder and the ledger."""

from mmdata.engine.forecast import Forecast
from mmdata.engine.run import Runner, RunResult
from mmdata.engine.runstore import RunStore
from mmdata.engine.task import Executor, Task, TaskReport

__all__ = ["Executor", "Forecast", "RunResult", "RunStore", "Runner", "Task", "TaskReport"]
