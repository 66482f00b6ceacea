from collections import Counter

PREFIX = "Skipped: documentation: "


def pytest_terminal_summary(terminalreporter):
    """How much of the documentation was run, and why not the rest."""
    stats = terminalreporter.stats
    ran = Counter(
        kind
        for report in stats.get("passed", [])
        if report.when == "call"
        for name, kind in report.user_properties
        if name == "documentation"
    )
    skipped = [r.longrepr[2] for r in stats.get("skipped", []) if isinstance(r.longrepr, tuple)]
    reasons = Counter(why.removeprefix(PREFIX) for why in skipped if why.startswith(PREFIX))
    if ran or reasons:
        why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(
            f"documentation: {ran['command']} commands and {ran['python']} Python blocks run, "
            f"{reasons.total()} not run ({why})"
        )
