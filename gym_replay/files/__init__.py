"""Files and folders that strangers may have made: reached without following a link, written whole, and locked."""
