"""What of a robots.txt is about us (RFC 9309), small enough to be remembered for many thousands of hosts."""

from functools import lru_cache

from protego import Protego

RULE_BYTES = 64_000
"""Of the rules about us; a longer list is cut, as the RFC allows for files of over 500 KiB."""


def rules_about(text: str, token: str) -> str:
    """The lines about `token`, or about everybody where there are none, as one group; empty where nothing is forbidden or asked.

    A file of strangers is cut down to these before it is parsed: parsers keep every rule once for every agent named above it.
    """
    about: dict[str, list[str]] = {token.lower(): [], "*": []}
    size = 0
    agents: list[str] = []
    named = set[str]()
    in_rules = True
    for line in text.splitlines():
        field, colon, value = line.partition("#")[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field == "user-agent":
            if in_rules:
                agents, in_rules = [], False
            agent = value.split("/")[0].strip().lower()
            if agent in about and agent not in agents:
                agents.append(agent)
                named.add(agent)
        elif field in ("allow", "disallow", "crawl-delay"):
            in_rules = True
            for agent in agents:
                if value and size < RULE_BYTES:
                    about[agent].append(f"{field}: {value}")
                    size += len(line)
    chosen = about[token.lower()] if token.lower() in named else about["*"]
    return "\n".join(["user-agent: *", *chosen]) if chosen else ""


@lru_cache(maxsize=512)
def _parsed(rules: str) -> Protego:
    return Protego.parse(rules)


def allowed(rules: str, url: str) -> bool:
    """Whether `rules_about` us let a URL be fetched."""
    return not rules or _parsed(rules).can_fetch(url, "*")


def crawl_delay(rules: str) -> float:
    """Seconds between two fetches that the rules ask for; 0 for none."""
    return float(_parsed(rules).crawl_delay("*") or 0.0) if rules else 0.0
