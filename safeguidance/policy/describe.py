"""A policy in words that people who did not write it can read."""

from __future__ import annotations

from .schema import ANY, CategoryRule, GuardRule, Judge, Level, Policy

_METHODS = {
    "text-redirector": "the text redirector that was trained for the model's text encoder",
    "hgr": "the HGR (SafeCFG) that was trained for the model",
    "concepts": "a redirector made from concept texts, without training",
    "sp-guard": "SP-Guard, without training",
    "safree": "SAFREE on the prompt, without training",
}
_ACTIONS = {
    "guard": "the picture is steered away from it",
    "refuse": "nothing is drawn and the user reads why",
    "replace": "the user gets a notice picture",
}
_PREVIEWS = {
    "off": "None is sent while a picture forms.",
    "judged": "Each is judged before it is sent.",
    "on": "They are sent as they are; what a guard steers away from may show in them for a moment.",
}
_LOADED = {
    "refuse": "Uploads and nodes that load a picture are refused.",
    "judge": "Each is judged like a picture that was drawn here.",
    "allow": "They are allowed and nobody looks at them.",
}


def explain(policy: Policy) -> str:
    """What a policy says, in words.

    Args:
        policy: read from a file, or a preset.

    Returns:
        Lines of text, without an end of line.
    """
    lines = [f"Policy {policy.name!r}, digest {policy.digest}", "", "Who is who"]
    lines += [f"  {line}" for line in _identity(policy)]
    for level in policy.levels.values():
        lines += ["", f"Level {level.name!r}" + (", the strictest" if level.name == policy.strictest else "")]
        lines += [f"  {line}" for line in _level(level)]
    lines += ["", "The server"]
    lines += [f"  {line}" for line in (*_nodes(policy), *_models(policy))]
    lines += [f"  Previews: {_PREVIEWS[policy.previews]}", f"  Pictures from elsewhere: {_LOADED[policy.loaded]}"]
    lines += [f"  {line}" for line in (*_audit(policy), *_evidence(policy))]
    weak = warnings(policy)
    if weak:
        lines += ["", "Look at these again"]
        lines += [f"  - {line}" for line in weak]
    return "\n".join(lines)


def _identity(policy: Policy) -> list[str]:
    identity = policy.identity
    if not identity.header:
        lines = [f"Nobody is told from anybody: every request has the level {policy.strictest!r}."]
    else:
        senders = ", ".join(identity.trusted_addresses)
        lines = [
            f"A user is who the header {identity.header} names, believed from {senders} only.",
            f"Everyone else, and everyone who is not listed here, has the level {policy.strictest!r}.",
        ]
        for level in policy.levels:
            users = sorted(user for user, named in identity.users.items() if named == level)
            if users:
                lines.append(f"{level}: {_some(users)}.")
    if not identity.private:
        return [*lines, "Users see everybody's pictures and history."]
    lines.append("Users see only their own pictures, queue and history, supervisors everybody's.")
    return [*lines, *(["Settings and saved workflows are each user's own."] if identity.header else [])]


def _level(level: Level) -> list[str]:
    lines = [_category(name, rule) for name, rule in level.categories.items()]
    if ANY not in level.categories:
        lines.append("Nothing else is looked for.")
    if level.refuse_prompts:
        lines.append("A prompt that reaches any of these is refused before anything is drawn.")
    lines.append("Guards, the first that there is for a model; without one nothing is drawn:")
    lines += [f"  {number}. {_guard(guard)}" for number, guard in enumerate(level.guards, 1)]
    lines.append(_judge(level.judge) if level.judge else "Nobody looks at finished pictures.")
    if level.supervisor:
        lines.append("Sees and changes everybody's queue, history and pictures.")
    said = " ".join(level.message.split())
    return [*lines, f'Who is refused reads: "{said}"']


def _category(name: str, rule: CategoryRule) -> str:
    what = "Every other category" if name == ANY else name.capitalize()
    start = "at the guard's own threshold" if rule.threshold is None else f"from a score of {rule.threshold:g}"
    line = f"{what}: {start}, {_ACTIONS[rule.action]}"
    return line + (f"; from {rule.refuse_at:g}, it is refused." if rule.refuse_at is not None else ".")


def _guard(guard: GuardRule) -> str:
    models = "any model" if ANY in guard.families else f"models of the family {', '.join(guard.families)}"
    settings = "".join(f", {name} = {value}" for name, value in guard.settings.items())
    file = f", file {guard.file}" if guard.file else ""
    return f"for {models}: {_METHODS[guard.method]} ({guard.preset}{settings}{file})"


def _judge(judge: Judge) -> str:
    who = f"The HGR {judge.file or 'of the model'}" if judge.kind == "redirector" else f"The classifier {judge.file}"
    same = f", and its file must have the digest {judge.sha256[:12]}..." if judge.sha256 else ""
    return f"{who} looks at each finished picture; from a score of {judge.threshold:g}, {_ACTIONS[judge.action]}{same}."


def _nodes(policy: Policy) -> list[str]:
    rules = policy.nodes
    kinds = [("ComfyUI's own", rules.core), ("its paid services", rules.api_nodes), ("SafeGuidance's", rules.own)]
    allowed = [name for name, on in kinds if on]
    lines = [f"Nodes: {', '.join(allowed) or 'none of ComfyUI and none of SafeGuidance'}."]
    if rules.add:
        lines.append(f"Nodes besides: {_some(rules.add)}.")
    if rules.remove:
        lines.append(f"Nodes taken away: {_some(rules.remove)}.")
    return lines


def _models(policy: Policy) -> list[str]:
    if policy.models.any:
        return ["Models: any file that is on the server."]
    return [f"Models: {_some(policy.models.allow)}." if policy.models.allow else "Models: none is allowed yet."]


def _audit(policy: Policy) -> list[str]:
    rules = policy.audit
    if not rules.enabled:
        return ["Log: none is kept."]
    kept = "the prompts themselves" if rules.text else "the digest of each prompt, not its text"
    failing = "nothing is drawn" if rules.on_failure == "refuse" else "it is drawn all the same"
    return [
        f"Log: {rules.path}, with {kept}; a new file from {rules.max_bytes:,} bytes on.",
        f"Where nothing can be written to it, {failing}.",
    ]


def _evidence(policy: Policy) -> list[str]:
    rules = policy.evidence
    marks = [
        ("policy and decision", rules.metadata),
        ("the IPTC mark of generated pictures", rules.iptc),
        ("a signed C2PA manifest", rules.c2pa),
    ]
    named = [text for text, on in marks if on]
    return [f"A saved picture holds: {', '.join(named) or 'nothing of this'}."]


def warnings(policy: Policy) -> list[str]:
    """What is allowed in a policy and may not be meant.

    Args:
        policy: read from a file, or a preset.
    """
    found = []
    if not policy.models.any and not policy.models.allow:
        found.append("No model is allowed: name at least one under [models] allow.")
    if policy.identity.header and not policy.identity.users:
        found.append(f"No user is listed, so everyone has the level {policy.strictest!r}.")
    if policy.identity.private and not policy.identity.header:
        found.append("Users are to see only their own pictures, but nobody can be told from anybody without a header.")
    found += [
        f"Code in the nodes of {entry} is trusted in full: it can get round everything here."
        for entry in policy.nodes.add
    ]
    if policy.nodes.api_nodes:
        found.append("Paid services draw on machines that no guard here reaches.")
    if policy.loaded == "allow":
        found.append("Pictures from elsewhere are passed on without a look.")
    for level in policy.levels.values():
        if not any(ANY in guard.families for guard in level.guards):
            found.append(f"Level {level.name!r}: models of other families than those of its guards are refused.")
    if not policy.audit.enabled:
        found.append("Nothing is written down.")
    elif not policy.audit.path.parent.is_dir():
        found.append(f"The folder of the log, {policy.audit.path.parent}, is not there: the server would not start.")
    elif policy.audit.on_failure == "continue":
        found.append("Pictures are drawn although nothing can be written down.")
    return found


def _some(names: list[str] | tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
