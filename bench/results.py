# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder share: where their tables are kept."""
import pathlib


def write_between(path, name, title, text):
    """Replaces what stands between the marks of bench/NAME in a file, or appends a section for it."""
    begin, end = f"<!-- begin: bench/{name} -->", f"<!-- end: bench/{name} -->"
    path = pathlib.Path(path)
    old = path.read_text() if path.exists() else "# Results\n"
    if begin not in old:
        old += f"\n## {title}\n\n{begin}\n{end}\n"
    head, rest = old.split(begin)
    path.write_text(head + begin + "\n" + text + "\n" + end + rest.split(end)[1])
