"""Types of settings about nodes and processes: environment variables, Ray labels, custom resources."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

# Short words count between underscores only: a MONKEY holds no KEY.
_SECRET = re.compile(
    r"((^|_)(KEY|TOKEN|PASS|PWD|PAT|CREDENTIALS?|AUTHORIZATION|WEBHOOK|COOKIE)(?=_|$)|(^|_)(AUTH|AUTHENTICATION|DSN)$"
    r"|PASSWORD|PASSWD|PASSPHRASE|APIKEY|SECRET|CONN(ECTION)?_?STR(ING)?(?=_|$))"
    r"(?!S?_(PATH|FILE|DIR|IDS)$)"
)
_SECRET_SETTING = re.compile(
    r"(^|_)(password|passwd|passphrase|tokens?|secrets?|credentials?"
    r"|(api|access|secret|private|auth|hub|hf|wandb|openai)_?key)$"
)
_PASSWORD_IN_URL = re.compile(r"://[^/\s]*:[^/\s]*@")
_SET_ELSEWHERE = {
    "OMP_NUM_THREADS": "threads_per_rank and threads_per_engine set it",
    "PYTHONPATH": "the code comes from the working directory",
    "RAY_ADDRESS": "the cluster is joined already",
    "RAY_JOB_STOP_WAIT_TIME_S": "cluster.stop_wait_s sets it",
    "CUDA_VISIBLE_DEVICES": "Ray sets it",
    "TANDEM_LOG": "it is Tandem's own",
    "TANDEM_NICENESS": "it is Tandem's own, and 0 where the threads that are set fit into the cores",
    "TANDEM_ONE_NODE": "it is Tandem's own",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "weights are data, and no code is loaded with them",
}
_RUNS_CODE = re.compile(
    r"LD_(?!LIBRARY_PATH$)\w+|DYLD_\w+|GCONV_PATH|LOCPATH|GLIBC_TUNABLES|CUDA_INJECTION\w+|OMPT?_TOOL_LIBRARIES"
    r"|PYTHON(?!(HASHSEED|UNBUFFERED|FAULTHANDLER|DONTWRITEBYTECODE|UTF8|IOENCODING|MALLOC|TRACEMALLOC)$)\w*"
    r"|PATH|SHELL|ENV|BASH_ENV|BASHOPTS|SHELLOPTS|PROMPT_COMMAND|IFS|BROWSER|EDITOR|VISUAL|\w*PAGER|LESS(OPEN|CLOSE)"
    r"|PERL\w+|RUBY(OPT|LIB)|NODE_(OPTIONS|PATH)|_?JAVA_(TOOL_)?OPTIONS|JDK_JAVA_OPTIONS|CLASSPATH"
    r"|GIT_\w+|\w+_ASKPASS|OPENSSL_(CONF|MODULES|ENGINES)|MPLBACKEND|MATPLOTLIBRC|IPYTHONDIR|COVERAGE_PROCESS_START"
    r"|WANDB__?EXECUTABLE|RAY_\w*_HOOK|HF_DATASETS_TRUST_REMOTE_CODE"
)
"""Names by which programs and libraries run other code than their own."""


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable holds a secret: by its name (HF_TOKEN, but not HF_TOKEN_PATH or STOP_TOKEN_IDS), or as a URL
    with a password."""
    return _SECRET.search(name.upper()) is not None or _PASSWORD_IN_URL.search(value) is not None


def is_secret_setting(name: str) -> bool:
    """Whether a part of a setting's dotted name tells of a secret: hub_token and WANDB_API_KEY, but neither prompt_key
    nor eval_pass_reward; max_response_tokens are none either."""
    if name.isupper():
        return is_secret(name)
    lower = name.lower()
    return _SECRET_SETTING.search(lower) is not None and not lower.endswith("_tokens")


def _check_environment(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name} must be a name of letters, digits and _, got {name!r}")
        # Two values for one thing: which of them counts would depend on who starts the process.
        if name in _SET_ELSEWHERE:
            raise ValueError(f"{name} must be left out, as {_SET_ELSEWHERE[name]}, got {variables[name]!r}")
        if _RUNS_CODE.fullmatch(name):
            raise ValueError(f"{name} must be left out, as programs run other code by it, got {variables[name]!r}")
        # Without the value: a message is kept in logs.
        if is_secret(name):
            raise ValueError(f"{name} must come from the environment of the nodes: configurations are kept and shown")
        if _PASSWORD_IN_URL.search(variables[name]):
            raise ValueError(f"{name} must hold no URL with a password: configurations are kept and shown")
    return variables


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""
Environment = Annotated[dict[str, str], AfterValidator(_check_environment)]
"""Environment variables; secrets are refused."""


_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = re.compile(rf"({_LABEL}/)?{_LABEL}")
_LABEL_EXPRESSION = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(, ?{_LABEL})*\)")


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name):
            # What has no letters to show makes no part of a dotted name.
            where = f"{name} must" if name.strip().isprintable() and name.strip() else ": names must"
            raise ValueError(f"{where} be the name of a label: letters, digits, '-', '_' and '.', got {name!r}")
        if not _LABEL_EXPRESSION.fullmatch(value):
            raise ValueError(f"{name} must be a label's value, or !value, in(a, b), !in(a, b), got {value!r}")
    return labels


NodeLabels = Annotated[dict[str, str], AfterValidator(_check_labels)]
"""Ray labels that a node must have, and expressions for their values."""


def _check_resources(resources: dict[str, float]) -> dict[str, float]:
    for name in resources:
        if name.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
            raise ValueError(f"{name} must be left out, as it is no custom resource, got {resources[name]:g}")
    return resources


NodeResources = Annotated[dict[str, Annotated[float, Field(gt=0, le=10**12)]], AfterValidator(_check_resources)]
"""Custom Ray resources, by name."""
