#!/bin/sh
# rootfs.sh BINARY DIR [PROFILE]: puts everything that the image holds below DIR: the binary without what debuggers read, the
# libraries it is linked with, two users; and the profile that it was built by, so that it can be built again. No shell and no package manager. The same input gives the same bytes;
# times are SOURCE_DATE_EPOCH.
set -eu
binary=$1
root=$2
mkdir -p "$root/usr/local/bin" "$root/etc" "$root/run/penstock" "$root/tmp"
strip -o "$root/usr/local/bin/penstock" "$binary"
if [ $# -gt 2 ]; then
    mkdir -p "$root/usr/share/penstock"
    cp "$3" "$root/usr/share/penstock/penstock.profdata"
fi
# Answers `nginx -T` and `nginx -t`.
ln -sf penstock "$root/usr/local/bin/nginx"
# Where the loader looks for them; `cp --parents` follows the links.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    cp --dereference --parents "$library" "$root"
done
cat > "$root/etc/passwd" <<END
root:x:0:0:root:/:/nonexistent
nonroot:x:65532:65532:nonroot:/:/nonexistent
END
cat > "$root/etc/group" <<END
root:x:0:
nonroot:x:65532:
END
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
# Bodies and the socket for a successor, of whatever user the container has.
chmod 1777 "$root/tmp" "$root/run/penstock"
find "$root" -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
