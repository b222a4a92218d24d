#!/bin/sh
# hold N: really uses N MiB of memory at once, and says so. In the demonstration it is what a compiler
# or a package manager would be: a step that needs far more memory than the finished image.
#
# The kernel clears 2 MiB at a time where awk's heap grows in one piece: hence MALLOC_TOP_PAD_, but no piece
# is more than three quarters of all memory, since one that cannot be had is refused before anything is used.
# And env: this shell would otherwise become awk by itself, with its own malloc already set up.
read -r _ total _ </proc/meminfo
pad=$(($1 * 1200000))
[ "$pad" -le "$((total * 768))" ] || pad=$((total * 768))
exec env MALLOC_TOP_PAD_="$pad" awk -v megabytes="$1" 'BEGIN {
	text = "spore"
	while (length(text) < 65536) text = text text
	text = substr(text, 1, 65536)
	for (i = 0; i < megabytes * 16; i++) held[i] = text
	getline < "/proc/meminfo"
	print "held " i / 16 " MiB at once where MemTotal is " int($2 / 1024) " MiB"
}'
