# SPDX-License-Identifier: Apache-2.0
"""Tables as text or Markdown."""


def show(title, head, rows, markdown):
    """The first column is text, the others are numbers."""
    widths = [max(len(line[i]) for line in [head] + rows) for i in range(len(head))]
    align = lambda line: [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
    print(f"\n{title}\n")
    if markdown:
        print("| " + " | ".join(align(head)) + " |")
        print("|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
        for row in rows:
            print("| " + " | ".join(align(row)) + " |")
    else:
        for line in [head] + rows:
            print("  ".join(align(line)).rstrip())
    print(end="", flush=True)
