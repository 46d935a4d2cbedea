"""Kind qemu: virtual machines, told what they are over a virtio port.

spawner.py     the kind                           running.py   a machine that runs: started, heard, ended
argv.py        a machine as a command line        machines.py  what an environment makes of it
template.py    clones of one that has booted      accel.py     whose processor it has, by a test
images.py      initial file system, empty disk    modules.py, newc.py   what is in them
qmp.py         qemu's own protocol                probing.py   whether there is a qemu
"""
