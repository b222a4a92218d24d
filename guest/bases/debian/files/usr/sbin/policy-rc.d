#!/bin/sh
# Services are not started when they are installed (invoke-rc.d(8)): PID 1 is not an init system.
exit 101
