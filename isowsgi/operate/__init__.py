"""How an operator talks to running workers: a Unix socket in each worker, and the commands of `isowsgi` that use it.

Not `inside/control.py`: that is the thread inside each app's interpreter which takes the supervisor's orders.
"""
