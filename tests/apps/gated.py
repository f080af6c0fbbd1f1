"""Cannot be imported before the file `GATE` exists, and says in its log that it waits."""

import os
import time

from hello import application as application

print("waiting at the gate", flush=True)
while not os.path.exists(os.environ["GATE"]):
    time.sleep(0.01)
