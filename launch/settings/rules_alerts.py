"""Rules about alerts: that what they judge is a metric that the job writes.

Every failure is a ValueError whose text begins with the field.
"""

from launch.alerts.config import FallingAlert
from launch.config import RunConfig


def check_alerts(config: RunConfig, of_steps: list[str], of_evaluations: list[str]) -> None:
    """Raise ValueError when a rule is about none of the metrics of training steps, where these are known, or of
    evaluations, where these are."""
    alerts = config.tracking.alerts
    asked = {f"limits.{number}.metric": rule.metric for number, rule in enumerate(alerts.limits)}
    # The default is of reinforcement learning, and finds nothing to judge elsewhere.
    if alerts.falling and alerts.falling.metric != FallingAlert().metric:
        asked["falling.metric"] = alerts.falling.metric
    for field, name in asked.items():
        known = of_evaluations if name.startswith("eval/") else of_steps
        if known and name not in known:
            from launch.settings.names import nearest_name  # which only a mistake needs

            near = nearest_name(name, known + of_evaluations)
            raise ValueError(
                f"tracking.alerts.{field} must be a metric that {config.algorithm.name} writes, as docs/outputs.md has "
                f"them{near}, got {name[:80]}"
            )
