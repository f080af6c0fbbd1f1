"""Has an exit function: it waits `EXIT_DELAY_S` seconds, then adds a line to the file `EXIT_FILE`."""

import atexit
import os
import time

from hello import application as application


def leave():
    time.sleep(float(os.environ.get("EXIT_DELAY_S", "0")))
    with open(os.environ["EXIT_FILE"], "a") as file:
        file.write("exit function ran\n")


atexit.register(leave)
