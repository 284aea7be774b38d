# Read by every shell that a page starts.
set -e
