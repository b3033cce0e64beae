"""A process that does not outlive the one that started it."""

import os
import threading


def end_with_the_parent() -> None:
    """The parent holds the other end of standard input, a pipe: at its end, however it came, stop."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
