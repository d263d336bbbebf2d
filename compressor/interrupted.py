"""Whether somebody asked the command to end. An extension that is interrupted may report an error of its own."""

from threading import Event

interrupted = Event()  # set by the command line on Ctrl-C and SIGTERM
