"""Links that break, of which those into and out of a COMMIT matter most."""

from chaos.faults.fault import MOVES_AFTER_FREEZING, Fault, Scene
from chaos.proxy import Mode

COMMIT_BYTES = 40  # the message, and the whole of its answer
ACCEPT_BYTES = 3_000
ACCEPT_SHARE, ANSWER_SHARE = 0.7, 0.6  # what was stored, and is not answered, is the hardest to be honest about


def link(scene: Scene) -> Fault:
    """Any link refused, hung, half-open either way, slow, or reset after some bytes."""
    name = scene.random.choice(sorted(scene.cluster.links))
    chosen, seconds = scene.cluster.links[name], scene.seconds()
    mode = scene.random.choice(
        [
            *(Mode("refuse"), Mode("hang"), Mode("swallow_up"), Mode("swallow_down")),
            Mode("delay", seconds=scene.random.uniform(0.01, 0.3)),
            Mode("reset_after", length=scene.random.randrange(5_000)),
        ]
    )
    begin, end = (lambda: chosen.set(mode)), (lambda: chosen.set(Mode()))
    return Fault("links", f"{name} {mode.kind} for {seconds:.1f} s", begin, end, seconds, MOVES_AFTER_FREEZING)


def commit(scene: Scene) -> Fault:
    """Connections cut some bytes after the beginning of a COMMIT, or of an acceptance: before, within or after it."""
    edges = [name for name in scene.cluster.links if name.endswith(">postgres")]
    edge = "api>postgres" if scene.random.random() < ACCEPT_SHARE else scene.random.choice(edges)
    pattern, most = (b"EXECUTE accept", ACCEPT_BYTES) if edge.startswith("api") else (b"COMMIT", COMMIT_BYTES)
    if scene.random.random() < ANSWER_SHARE:
        mode, where = (
            Mode("cut_answer", length=scene.random.randrange(COMMIT_BYTES), pattern=pattern),
            "of the answer to",
        )
    else:
        mode, where = Mode("cut_at", length=scene.random.randrange(most), pattern=pattern), "into"
    seconds, chosen = scene.seconds(), scene.cluster.links[edge]
    what = f"{edge} cut {mode.length} bytes {where} {pattern.decode()}"
    return Fault("commit", what, lambda: chosen.set(mode), lambda: chosen.set(Mode()), seconds, MOVES_AFTER_FREEZING)
