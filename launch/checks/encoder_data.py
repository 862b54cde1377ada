"""The data of an embedding model or reranker, as far as it is here, and the models that guide its losses."""

from launch.checks.data_checks import is_unread, named_sources
from launch.checks.encoder_row_checks import check_encoder_rows, check_held_out
from launch.checks.findings import Findings
from launch.checks.other_models import check_other_model
from launch.kinds.encoder import EncoderKind
from launch.models.encoders import check_embedding_model


def check_encoder_data(kind: EncoderKind, findings: Findings, *, tokenise: bool) -> None:
    """Check the data sets of an embedding model or reranker, and the guides of its losses."""
    data = findings.config.data
    given = {"data.train": data.train, "data.eval": data.eval, "data.corpus": data.corpus}
    elsewhere = {
        field: [name for name, path in named_sources(field, value).items() if is_unread(findings, name, path)]
        for field, value in given.items()
    }
    if not elsewhere["data.train"]:
        with findings.collecting():
            train = findings.aside.call(check_encoder_rows, kind, tokenise=tokenise)
            findings.rows, findings.mean_tokens, findings.complete = train.count, train.mean_tokens, train.complete
    if data.eval is not None and not elsewhere["data.eval"] and not elsewhere["data.corpus"]:
        with findings.collecting():
            findings.aside.call(check_held_out, kind)
    for option, path in kind.algorithm.guides.items():
        check_other_model(findings, path, f"algorithm.{option}", check_embedding_model)
