#!/usr/bin/env bash
# images.sh DOCKER_HOST: builds the images that critest uses from Debian's
# packages and pushes each under its public name to the local registry (registry.sh).
# No image stays in the Engine.
. "$(dirname "$0")/lib.sh"
export DOCKER_HOST=$1
w=$(mktemp -d)
trap 'rm -rf "$w"' EXIT
cd "$w"

push() { docker tag "$1" "$2" && docker push -q "$2" >/dev/null && docker rmi "$2" >/dev/null; }
from() { DOCKER_BUILDKIT=0 docker build --network none -q -t "$1" - >/dev/null 2>&1; }
libs() { local l; for l in $(ldd "$1" | grep -oE '/[^ ]+'); do mkdir -p "$2$(dirname "$l")"; cp -L "$l" "$2$l"; done; }
path='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
E=registry.k8s.io/e2e-test-images G=gcr.io/k8s-staging-cri-tools

# A shell with the usual commands.
mkdir -p bb/{bin,sbin,usr/bin,usr/sbin,etc,tmp,root,var/www,home,dev,lib,run}
ln -s ../run bb/var/run
chmod 1777 bb/tmp
cp "$cache/busybox" bb/bin/busybox
for a in $(bb/bin/busybox --list | grep -vx busybox); do ln bb/bin/busybox "bb/bin/$a"; done
cat >bb/etc/passwd <<P
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
P
printf 'root:x:0:\ndaemon:x:1:\nbin:x:2:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n' >bb/etc/group
tar -C bb -c . | docker import -c 'CMD ["sh"]' -c "$path" - t-busybox >/dev/null
push t-busybox $E/busybox:1.29-2
push t-busybox $E/busybox:1.37.0-2

# berth's pause program, under the names of public pause images.
mkdir p && cp "$top/core/pause/pause-$(dpkg --print-architecture)" p/pause
tar -C p -c . | docker import -c 'ENTRYPOINT ["/pause"]' -c 'USER 65535:65535' - t-pause >/dev/null
for n in 3.10 3.10.1 3.10.2; do push t-pause registry.k8s.io/pause:$n; done
printf 'FROM t-pause\nLABEL v=3.9\n' | from t-pause39
for n in registry.k8s.io k8s.gcr.io; do push t-pause39 $n/pause:3.9; done

for n in user-uid=1002 user-username=www-data user-uid-group=1003:users user-username-group=www-data:100; do
	printf 'FROM t-busybox\nUSER %s\n' "${n#*=}" | from t-u
	push t-u "$G/test-image-${n%%=*}:latest"
done
printf 'FROM t-busybox\nRUN echo "default-user:x:1000:1000::/home:/bin/sh" >> /etc/passwd && printf "default-user:x:1000:\\ngroup-defined-in-image:x:50000:default-user\\n" >> /etc/group\nUSER 1000\n' | from t-pre
push t-pre $G/test-image-predefined-group:latest
for t in latest tag all 1 2 3 tags; do printf 'FROM t-busybox\nRUN echo %s > /test-%s\n' $t $t | from t-$t; done
push t-latest $G/test-image-latest:latest
push t-tag $G/test-image-tag:test
push t-all $G/test-image-tag:all
for i in 1 2 3; do
	push t-$i $G/test-image-$i:latest
	push t-tags $G/test-image-tags:$i
done

# Web servers.
cp -a bb ng
mkdir -p ng/usr/share/nginx/html ng/etc/nginx ng/var/log/nginx ng/var/lib/nginx
cp /usr/sbin/nginx ng/usr/sbin/
libs /usr/sbin/nginx ng
echo '<html><title>Welcome to nginx!</title>Welcome to nginx!</html>' >ng/usr/share/nginx/html/index.html
for p in 80 12003; do
	cat >ng/etc/nginx/nginx.conf <<C
user root; worker_processes 1; pid /var/run/nginx.pid; error_log /dev/stderr;
events { worker_connections 64; }
http { access_log /dev/stdout; server { listen $p; location / { root /usr/share/nginx/html; index index.html; } } }
C
	tar -C ng -c . | docker import -c 'CMD ["nginx","-g","daemon off;"]' -c "$path" - t-nginx-$p >/dev/null
done
for t in 1.14-2 1.27.0-2 1.28.0-2; do push t-nginx-80 $E/nginx:$t; done
push t-nginx-12003 $G/hostnet-nginx-amd64:latest
printf 'FROM t-nginx-80\nCMD ["sh","-c","echo httpd ready; exec httpd -f -p 80 -h /usr/share/nginx/html"]\n' | from t-httpd
push t-httpd $E/httpd:2.4.39-4

# A program that shows whether it can gain privileges.
mkdir nn && gcc -static -Os -o nn/nonewprivs "$e2e/nonewprivs/nonewprivs.c"
chmod 4755 nn/nonewprivs
tar -C nn --owner 0 --group 0 -c . | docker import -c 'ENTRYPOINT ["/nonewprivs"]' -c 'USER 1000' - t-nnp >/dev/null
push t-nnp $E/nonewprivs:1.3
push t-nnp $E/nonewprivs:1.4
docker images --format '{{.Repository}}:{{.Tag}}' 't-*' | xargs -r docker rmi -f >/dev/null
docker image prune -f >/dev/null
