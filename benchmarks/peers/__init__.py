"""Priority stores and input pipelines of others, each in an interpreter of its own.

==========================  ======================================================================
file                        what lives there
==========================  ======================================================================
``requirements/NAME.txt``   what one peer needs, every version pinned
``install.py``              ``make peers``: an environment a peer under ``.peers/``
``compile_torchrl.py``      TorchRL's C++ trees, from the sources inside its wheel
``systems.py``              the peers, each with the two verbs ``draw`` and ``update``
``pipelines.py``            input pipelines, each with a verb ``begin``
``worker.py``               the program that runs in a peer's interpreter and is told what to do
``remote.py``               our side of it: starts workers, asks them, gives them up
``remote_pipelines.py``     the same for input pipelines
==========================  ======================================================================

``systems.py``, ``pipelines.py`` and ``worker.py`` run in the peer's interpreter, which may be Python 3.10: they import
NumPy, the peer, the standard library and ``benchmarks/pipeline_data.py``, nothing else.
"""
