# Fills `records` pages of 4 KiB with text that is different in each, then reads every byte back.
#
#   awk -v records=N -v seed=S "$program"      with MALLOC_TOP_PAD_ at least as large as all of it
#
# Prints `free A` before and `full B` after filling (free MiB of ZONE_MOVABLE, where memory that was
# plugged is), then `sum C wrong W`: a checksum of what it read, and how many records were not as written.
# In user space and on one heap: so the kernel clears 2 MiB at a time, and copies nothing.

function movable(    line, words, inside, pages) {
	while ((getline line < "/proc/zoneinfo") > 0) {
		if (line ~ /^Node/) inside = (line ~ /Movable/)
		if (inside && line ~ /pages free/) { split(line, words); pages += words[3] }
	}
	close("/proc/zoneinfo")
	return int(pages / 256)
}

BEGIN {
	text = "0123456789abcdefghijklmnopqrstuvwxyz"
	while (length(text) < 4068) text = text text
	text = " " substr(text, 1, 4068)

	print "free " movable()
	number = seed
	for (i = 0; i < records; i++) {
		number = (number * 69069 + 1) % 1073741824
		memory[i] = sprintf("%d", 1000000000 + number) text
	}
	print "full " movable()
	fflush()

	number = seed
	for (i = 0; i < records; i++) {
		number = (number * 69069 + 1) % 1073741824
		if (memory[i] != sprintf("%d", 1000000000 + number) text) wrong++
		sum = (sum * 31 + memory[i]) % 2147483648
	}
	print "sum " sum " wrong " wrong + 0
}
