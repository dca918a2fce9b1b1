#!/bin/sh
awk 'BEGIN { for (n = 2; n < 1000; n++) { p = 1; for (d = 2; d * d <= n; d++) if (n % d == 0) { p = 0; break }; c += p }; print c }' > /tmp/answer.txt
