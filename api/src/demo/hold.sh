#!/bin/sh
# hold N: really uses N MiB of memory at once, and says so. In the demonstration it is what a compiler
# or a package manager would be: a step that needs far more memory than the finished image.
#
# The kernel clears 2 MiB at a time where awk's heap grows in one piece: hence MALLOC_TOP_PAD_, and env,
# since this shell would otherwise become awk by itself, with its own malloc already set up.
exec env MALLOC_TOP_PAD_=$(($1 * 1200000)) awk -v megabytes="$1" 'BEGIN {
	text = "spore"
	while (length(text) < 65536) text = text text
	text = substr(text, 1, 65536)
	for (i = 0; i < megabytes * 16; i++) held[i] = text
	getline < "/proc/meminfo"
	print "held " i / 16 " MiB at once where MemTotal is " int($2 / 1024) " MiB"
}'
