"""Priority stores of others, each in an interpreter of its own.

==========================  ======================================================================
file                        what lives there
==========================  ======================================================================
``requirements/NAME.txt``   what one peer needs, every version pinned
``install.py``              ``make peers``: an environment a peer under ``.peers/``
``compile_torchrl.py``      TorchRL's C++ trees, from the sources inside its wheel
``systems.py``              the peers, each with the two verbs ``draw`` and ``update``
``worker.py``               the program that runs in a peer's interpreter and is told what to do
``remote.py``               our side of it: starts workers, asks them, gives them up
==========================  ======================================================================

``systems.py`` and ``worker.py`` run in the peer's interpreter, which may be Python 3.10: they import NumPy, the peer
and the standard library, nothing else.
"""
