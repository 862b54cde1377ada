"""Where the text of a response ends that a stop string has ended."""


def up_to_stop(text: str, stop: str, engine_text: str, *, keep: bool) -> str:
    """The text of a response that the string `stop` has ended, without it, or with `keep` up to its end.

    `text` is that of all tokens; the last one may go on behind `stop`. `engine_text` is the engine's own, which lacks
    `stop`: it counts where the tokens, decoded together, give other characters than one after the other.
    """
    # The first one is the one that ended it: an earlier one would have done so earlier.
    before, found, _ = text.partition(stop)
    return (before if found else engine_text) + (stop if keep else "")
