"""argparse, answering a mistyped word with the nearest that it knows."""

import argparse
import re
from typing import NoReturn

from flare_ds.registry import suggestion


class Parser(argparse.ArgumentParser):
    """Parsers of verbs are of this kind, too."""

    def error(self, message: str) -> NoReturn:
        """End with the usage, the problem and what was probably meant."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            choices = re.findall(r"[^ ,']+", wrong[2])
            message = f"{wrong[1]!r} is none of them: {suggestion(wrong[1], choices)}"
        super().error(message)

    def refuse(self, words: list[str]) -> NoReturn:
        """End because of words that belong to nothing; of an unknown option, with what was probably meant."""
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            self.error(f"cannot read {' '.join(words)}")
        known = ["--help", *re.findall(r"--[\w-]+", self.format_usage())]
        self.error(f"cannot read {option}: {suggestion(option.partition('=')[0], known)}")
