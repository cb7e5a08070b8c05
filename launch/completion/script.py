"""The script with which a shell completes `dtem`. The only file that names shtab, which writes it."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.cli import build_parser
from launch.completion.words import bare_configs, policies, settings
from pipeline.extras import extra

FILES, FOLDERS = ("FILE", "PATH", "SOURCE", "IMAGE"), ("RUN", "RUN_OR_MODEL", "FOLDER", "DIR")
"""Metavars of arguments that take files, and folders."""
CONFIGS, SETTINGS, POLICIES = "configs", "settings", "policies"
_WORDS_OF = {"CONFIG": CONFIGS, "KEY=VALUE": SETTINGS}
_BASH = """
_dtem_{name}() {{ compgen -W "{words}" -- "$1"; {files} }}
"""
_ZSH = """
_dtem_{name}() {{ compadd {options} -- {words}; {files} }}
"""
_WHOLE_WORDS = """
# bash parts words at ':' and '=', so dtem::NAME and KEY=VALUE are joined before, and cut after
_dtem_joined() {
  local all=("${COMP_WORDS[@]:0:COMP_CWORD+1}") word last number=-1
  local -a COMP_WORDS=()
  for word in "${all[@]}"; do
    if (( number >= 1 )) && [[ $word == [:=]* || $last == *[:=] ]]; then
      COMP_WORDS[number]+=$word
    else
      COMP_WORDS[++number]=$word
    fi
    last=$word
  done
  local COMP_CWORD=$number whole=${COMP_WORDS[number]}
  _shtab_dtem
  [[ $whole == *[:=]* ]] && COMPREPLY=("${COMPREPLY[@]#"${whole%"${whole##*[:=]}"}"}")
  [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o bashdefault -F _dtem_joined dtem
"""


def script(shell: str) -> str:
    """The script for a shell (bash, zsh, tcsh), with the names that the registries have now. Raises
    ConfigError where shtab is not installed."""
    with extra("completion"):
        import shtab
    parser = build_parser()
    words = {CONFIGS: bare_configs(), SETTINGS: settings(), POLICIES: policies()}
    for action in _actions(parser):
        if action.choices is None and (found := _completed_by(action, words, shtab)) is not None:
            vars(action)["complete"] = found
    preamble: Any = _preamble(words)  # a text for each shell, which shtab's annotation does not say
    text = shtab.complete(parser, shell, preamble=preamble)
    return text + (_WHOLE_WORDS if shell == "bash" else "")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


def _completed_by(action: argparse.Action, words: Mapping[str, Sequence[str]], shtab: Any) -> Any:
    """What shtab takes for an argument; None where nothing is known of its values."""
    metavar = str(action.metavar or "")
    name = POLICIES if action.dest in ("policy", "policies") else _WORDS_OF.get(metavar)
    if name is not None:
        tcsh = "f" if name == CONFIGS else f"({' '.join(words[name])})"
        return {"bash": f"_dtem_{name}", "zsh": f"_dtem_{name}", "tcsh": tcsh}
    return shtab.FILE if metavar in FILES else shtab.DIRECTORY if metavar in FOLDERS else None


def _preamble(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    found = {"bash": "", "zsh": "", "tcsh": ""}
    for name, listed in words.items():
        text, is_file = " ".join(listed), name == CONFIGS
        found["bash"] += _BASH.format(name=name, words=text, files='compgen -f -- "$1";' if is_file else "")
        options = "-S ''" if name == SETTINGS else ""
        found["zsh"] += _ZSH.format(
            name=name, words=text, options=options, files="_files;" if is_file else ""
        )
    return found
