"""What stands below everything: the machine, its arithmetic, devices and compiler, and the native library."""
