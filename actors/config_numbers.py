"""Types of the numbers in a configuration: how large each kind can be.

Upper bounds are far beyond what any run has; they are there for a slip of a digit or of the unit, which otherwise would
show after hours, or as a machine without memory.
"""

from typing import Annotated

from pydantic import Field

Processes = Annotated[int, Field(gt=0, le=100_000)]
"""Ranks, engines, workers, and how many of them a node has."""
Cores = Annotated[int, Field(gt=0, le=100_000)]
"""Threads or CPUs; 100,000 are those of a hundred large machines."""
Cpus = Annotated[float, Field(gt=0, le=10_000)]
"""CPUs of one process, which is on one machine."""
Gpus = Annotated[int, Field(gt=0, le=10_000)]
"""GPUs of one machine, or processes that share a model."""
Steps = Annotated[int, Field(gt=0, le=10**9)]
"""Steps, updates, and how many lie between two events; a thousand million of a second each are 30 years."""
StepsOrNone = Annotated[int, Field(ge=0, le=10**9)]
"""The same, where 0 is allowed."""
Epochs = Annotated[int, Field(gt=0, le=10**6)]
"""Passes over something."""
Batch = Annotated[int, Field(gt=0, le=10**6)]
"""Rows, prompts or samples of one step or update, or samples of one prompt: all are in memory at one time."""
BatchOrNone = Annotated[int, Field(ge=0, le=10**6)]
"""The same, where 0 is allowed."""
Retries = Annotated[int, Field(ge=0, le=10_000)]
"""Attempts after a first one."""
Count = Annotated[int, Field(ge=0, le=10**9)]
"""How many of something are kept, or numbered, where there is no better word."""
Rows = Annotated[int, Field(gt=0, le=10**12)]
"""Rows of a data set."""
Tokens = Annotated[int, Field(gt=0, le=10**8)]
"""Tokens of a sequence or of a micro-batch; the longest contexts have ten million."""
Width = Annotated[int, Field(gt=0, le=10**6)]
"""Sizes of a new model's tensors."""
Mib = Annotated[int, Field(gt=0, le=10**8)]
"""Memory in MiB: at most a hundred TiB."""
Gib = Annotated[int, Field(gt=0, le=10**6)]
"""Memory or disk in GiB."""
WholeSeconds = Annotated[int, Field(gt=0, le=10**9)]
"""A time that Kubernetes or Ray takes in whole seconds: 30 years."""
WholeSecondsOrNone = Annotated[int, Field(ge=0, le=10**9)]
"""The same, where 0 is allowed."""
Identity = Annotated[int, Field(gt=0, lt=2**31)]
"""Number of a user or group, as Kubernetes takes it."""
Factor = Annotated[float, Field(ge=0, le=10**6)]
"""Coefficients, margins, penalties and temperatures."""
PositiveFactor = Annotated[float, Field(gt=0, le=10**6)]
"""The same, where 0 would have no meaning."""
Weight = Annotated[float, Field(ge=-(10**6), le=10**6)]
"""Factor of a reward in a sum; below 0, it punishes."""
Threshold = Annotated[float, Field(ge=-(10**12), le=10**12)]
"""A value of a reward or metric that something is compared with."""
PositiveThreshold = Annotated[float, Field(gt=0, le=10**12)]
"""The same above 0; so large that it never holds, it switches a clip off."""
Rate = Annotated[float, Field(ge=0, le=100)]
"""A learning rate."""
Share = Annotated[float, Field(ge=0, le=10**12)]
"""Relative weights, which may be numbers of rows."""
