"""Completion of the command line in shells, made from what the parser knows.

eval "$(amct_onnx completion bash)"        in ~/.bashrc, or zsh in ~/.zshrc
amct_onnx completion fish | source         in config.fish
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_amct_onnx() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}} $before" in
{values}
    esac
    if [ -z "$words" ] && [[ "$current" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -F _amct_onnx amct_onnx
"""

_ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def completion(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script that teaches a shell the commands, their options and the values of these; all else is a file."""
    if shell == "fish":
        return _fish(commands)
    script = _BASH.format(
        commands=" ".join(commands),
        options="\n".join(
            f'            {name}) words="{" ".join(_options(parser))}" ;;' for name, parser in commands.items()
        ),
        values="\n".join(
            f'        "{name} {option}") words="{" ".join(map(str, action.choices))}" ;;'
            for name, parser in commands.items()
            for action in _shown(parser)
            if action.choices is not None
            for option in action.option_strings or [name]  # what stands before a value: an option, or the command
        ),
    )
    return _ZSH + script if shell == "zsh" else script


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in _shown(parser) for option in action.option_strings if option.startswith("--")]


def _fish(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = [f"complete -c amct_onnx -n __fish_use_subcommand -f -a {name}" for name in commands]
    for name, parser in commands.items():
        for action in _shown(parser):
            if not action.option_strings and action.choices is not None:
                chosen = shlex.quote(" ".join(map(str, action.choices)))
                lines.append(f"complete -c amct_onnx -n '__fish_seen_subcommand_from {name}' -f -a {chosen}")
            for option in _long(action):
                takes = "" if action.nargs == 0 else " -r"
                values = "" if action.choices is None else f" -f -a {shlex.quote(' '.join(map(str, action.choices)))}"
                about = shlex.quote((action.help or "").replace("%%", "%"))
                where = f"'__fish_seen_subcommand_from {name}'"
                lines.append(f"complete -c amct_onnx -n {where} -l {option}{takes}{values} -d {about}")
    return "\n".join(lines) + "\n"


def _long(action: argparse.Action) -> list[str]:
    return [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
