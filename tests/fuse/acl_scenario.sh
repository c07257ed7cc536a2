#!/usr/bin/env bash
# Access control lists as programs see them. Argument: a directory. What it prints was recorded on ext4 (acl_expected.txt).
set -u
cd "$1" || exit 1
export LC_ALL=C
u() { setpriv --reuid=$1 --regid=$1 --clear-groups --inh-caps=-all --bounding-set=-all "${@:2}"; }
who() { for id in 1001 1002 1003 1004; do u $id sh -c 'cat "$0" >/dev/null && echo r; echo x >>"$0" && echo w' "$1" 2>/dev/null; echo "- $id"; done; }
show() { getfacl -cn --absolute-names "$@" 2>&1; stat -c '%a %n' "$@"; }
chmod 777 .
umask 022; touch f; setfacl -m u:1001:rw,g:1002:r f; show f
chmod 640 f; show f; chmod 600 f; show f; chmod g=rw f; show f
u 1001 sh -c 'echo x >> f && echo ok'; chmod g=r f;  u 1001 sh -c 'echo x >> f && echo ok'; u 1002 cat f; u 1003 cat f
setfacl -m m::rwx f; show f; setfacl -x u:1001 f; show f; setfacl -b f; show f; getfattr -d -m - f
setfacl -b f; setfacl -k f; setfacl -d -m u:1:r f; echo $?
setfattr -x system.posix_acl_access f; echo rc $?; setfattr -x system.posix_acl_default . ; echo rc $?
setfattr -n system.posix_acl_access -v 0x0200 f; echo rc $?
mkdir d; setfacl -d -m u:1001:rwx,g:1002:rx,o::- d; show d
for um in 022 077; do (
    umask $um
    touch d/f$um; mkdir d/d$um; mkdir -m 1777 d/e$um; mkfifo d/p$um; mknod d/c$um c 1 3; ln -s x d/l$um; python3 -c "
import socket,sys
s=socket.socket(socket.AF_UNIX);s.bind('d/s$um')
import os
os.close(os.open('d/q$um',os.O_CREAT|os.O_WRONLY,0o400)); os.mkdir('d/m$um',0o700)"
    cp f d/cp$um; cp -p f d/cpp$um
); done
show d/[!l]*; stat -c '%a %n' d/l*
mkdir d/d077/x; touch d/d077/x/y; show d/d077/x d/d077/x/y
# default without named
mkdir g; setfacl -d -m u::rwx,g::rx,o::x g; show g; (umask 077; touch g/f; mkdir g/d); show g/f g/d; getfattr -m- g/f g/d
setfacl -k g; show g; (umask 077; touch g/h); show g/h
# setgid
mkdir sg; chgrp 1002 sg; chmod 2775 sg; setfacl -d -m u:1001:rwx sg; touch sg/f; mkdir sg/d; show sg/f sg/d; stat -c '%g' sg/f sg/d
# setgid loss on setfacl by owner not in group
touch h; chown 1001:1002 h; chmod 2775 h; u 1001 setfacl -m u:1003:r h; stat -c %a h; chmod 2775 h;  u 1001 chmod 2755 h; stat -c %a h; chmod 2775 h; setfacl -m u:1003:rw h; stat -c %a h
u 1003 setfacl -m u:1003:rw h; echo rc $?
u 1002 setfacl -m u:1003:rw h; echo rc $?
# deny by mask, group perms
touch k; chown 1001:1002 k; setfacl -m u::rw,u:1003:rw,g::r,m::r,o::- k; who k
setfacl -m m::rw k; who k
# access(2), exec dir
mkdir x; chmod 700 x; touch x/y; u 1001 ls x 2>&1; setfacl -m u:1001:rx x; u 1001 ls x; u 1002 ls x 2>&1; setfacl -m u:1001:x x; u 1001 ls x 2>&1; u 1001 stat -c %n x/y; setfacl -b x;  u 1001 stat -c %n x/y 2>&1
# link, rename keep
touch r; setfacl -m u:1001:r r; ln r r2; mv r r3; show r2 r3; cp -a r2 r4; show r4; chown 1001 r4; show r4; 
rm -rf tt; mkdir tt; setfacl -m u:1001:rwx -d -m u:1001:rwx tt; tar cf t.tar --acls tt; rm -r tt; tar xf t.tar --acls; show tt
ctime0=$(stat -c %z r4); sleep 0.1; setfacl -m u:1005:r r4; [ "$ctime0" != "$(stat -c %z r4)" ] && echo ctime moved
