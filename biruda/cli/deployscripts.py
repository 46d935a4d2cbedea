"""What `biruda deploy` runs on the other host: POSIX shell, which says what it does with `say KEY VALUE`.

Variables that every script gets: `given_home` (what --home said, else empty), and where they are known `exe` (where the
executable is to stand), `home` (the daemon's) and `unit` (the service's name). `HOME/deployed` lists, one a line, what
was made that was not there before; --remove takes away what it names and nothing beside it.
"""

from typing import Final

COMMON: Final = r"""
digest() { { sha256sum < "$1" || shasum -a 256 < "$1" || openssl dgst -sha256 -r < "$1"; } 2>/dev/null; }
pause() { sleep 0.2 2>/dev/null || sleep 1; }
lines() { while IFS= read -r line; do say "$1" "$line"; done; }
own() { BIRUDA_CACHE="$home/cache" "$exe" --home "$home" "$@" 2>&1; }
"""

LOOK: Final = r"""
user=$(id -u)
if [ "$user" = 0 ]; then
    exe=/usr/local/bin/biruda home=/var/lib/biruda
else
    exe=$HOME/.local/bin/biruda home=${XDG_STATE_HOME:-$HOME/.local/state}/biruda
fi
unit=
if [ -n "$given_home" ] && [ "$given_home" != "$home" ]; then
    home=$given_home unit=-$(printf %s "$given_home" | tr -c 'A-Za-z0-9\n' _)
fi
say user "$user"
say name "$(hostname 2>/dev/null || uname -n)"
say connection "$SSH_CONNECTION"
say exe "$exe"
say home "$home"
say unit "biruda$unit.service"
read -r first 2>/dev/null < /proc/1/comm
[ "$first" = systemd ] && [ -d /run/systemd/system ] && say systemd yes
[ -f "$exe" ] && say digest "$(digest "$exe")" && say there exe
[ -d "$home" ] && say there home
[ -f "$home/deployed" ] && say there deployed
[ -f "/etc/systemd/system/biruda$unit.service" ] && say there unit
[ -f "$home/master.db" ] && say there master
[ -f "$home/instance" ] && say instance "$(cat "$home/instance")"
[ -f "$home/credentials/joined.json" ] && say joined "$(cat "$home/credentials/joined.json")"
if [ -x "$exe" ] && [ -d "$home" ]; then
    say version "$(own --version)"
    say status "$(own status --json | tr -d '\n')"
fi
"""
"""What is there, and where things go. `status` is what `biruda status --json` says, where it runs."""

INSTALL: Final = r"""
made() {
    [ -d "$1" ] && return 0
    made "$(dirname "$1")" && mkdir "$1" 2>/dev/null && new="$1
$new" || return 1
}
fail() {
    say problem "$1"
    printf %s "$new" | while IFS= read -r path; do
        if [ "$path" = "$home" ]; then rm -rf "$path"; else rmdir "$path" 2>/dev/null; fi
    done
}
install() {
    made "$home" || { fail "$home cannot be made"; return; }
    umask 022
    made "$(dirname "$exe")" || { fail "$(dirname "$exe") cannot be made"; return; }
    umask 077
    [ -f "$home/deployed" ] || printf 'exe %s\n' "$exe" > "$home/deployed" ||
        { fail "$home cannot be written to"; return; }
    printf %s "$new" | while IFS= read -r line; do printf 'dir %s\n' "$line"; done >> "$home/deployed"
    cat > "$next" || { fail "$exe cannot be written"; return; }
    size=$(wc -c < "$next")
    [ "$size" -eq "$wanted_bytes" ] || { fail "only $size of $wanted_bytes bytes came"; return; }
    sum=$(digest "$next")
    case $sum in ''|"$wanted_digest"*) ;; *) fail 'what came is not what was sent'; return;; esac
    chmod 755 "$next"
    version=$(exe=$next; own --version)
    case $version in
        "biruda "*) mv -f "$next" "$exe" && say version "$version" || fail "$exe cannot be replaced";;
        *) fail "$exe does not run there: $version";;
    esac
}
new= next=$exe.new.$$
trap 'rm -f "$next"' EXIT
trap 'exit 1' HUP INT PIPE TERM
install
rm -f "$next"
trap - EXIT
"""
"""Puts the executable, which is the standard input, where it belongs, after it has run there once."""

JOIN: Final = r"""
told=$(own join "$url" --token - --name "$name")
say status $?
printf '%s\n' "$told" | lines told
"""
"""The token is the standard input."""

START: Final = r"""
start() {
    if [ -z "$systemd" ]; then
        told=$(own up)
        say status $?
        printf '%s\n' "$told" | lines told
        return
    fi
    file=/etc/systemd/system/$unit
    cat > "$file" && chmod 644 "$file"
    grep -qxF "unit $unit" "$home/deployed" || printf 'unit %s\n' "$unit" >> "$home/deployed"
    told=$(systemctl daemon-reload 2>&1 && systemctl enable --now "$unit" 2>&1)
    say status $?
    printf '%s\n' "$told" | lines told
}
start
"""
"""The unit, where there is systemd, is the standard input."""

STOP: Final = r"""
stop() {
    if [ -n "$systemd" ] && [ -f "/etc/systemd/system/$unit" ]; then
        told=$(systemctl stop "$unit" 2>&1)
    else
        told=$(own down)
    fi
    say status $?
    printf '%s\n' "$told" | lines told
}
stop
"""

LOG: Final = r"""
if [ -n "$systemd" ]; then journalctl -q -n 40 -o cat -u "$unit" 2>/dev/null | lines log; fi
[ -f "$home/log/daemon.log" ] && tail -n 40 "$home/log/daemon.log" | lines log
"""

REMOVE: Final = r"""
unpacked=${XDG_CACHE_HOME:-$HOME/.cache}/biruda
[ "$(id -u)" = 0 ] && unpacked=/var/cache/biruda
record=$(cat "$home/deployed" 2>/dev/null)
recorded() {
    case "
$record
" in *"
$1
"*) return 0;; esac
    return 1
}
command_of() { tr '\0' ' ' < "/proc/$1/cmdline" 2>/dev/null; }
ours() {
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        case $(readlink "$entry/exe" 2>/dev/null) in
            "$home"/*) echo "$pid"; continue;;
            '') continue;;
        esac
        case $(command_of "$pid") in *biruda*" --home $home "*) echo "$pid";; esac
    done
    groups | while IFS= read -r group; do cat "$group/cgroup.procs" 2>/dev/null; done
}
groups() {
    [ -n "$instance" ] || return 0
    find /sys/fs/cgroup -depth -type d 2>/dev/null | while IFS= read -r group; do
        case $group in */biruda/"$instance"|*/biruda/"$instance"/*) printf '%s\n' "$group";; esac
    done
}
ended() {
    count=0
    while pids=$(ours) && [ -n "$pids" ]; do
        [ $count -ge "$1" ] && return 1
        count=$((count + 1))
        pause
    done
}
shared() {
    for file in /etc/systemd/system/biruda*.service; do
        [ -f "$file" ] && grep -q "^ExecStart=$exe " "$file" && return 0
    done
    for entry in /proc/[0-9]*; do
        case $(command_of "${entry#/proc/}") in
            *biruda*" --home "*" up "*|*biruda*" --home "*" coordinator "*) return 0;;
        esac
    done
    return 1
}
take_exe() {
    [ -f "$exe" ] || return
    if ! recorded "exe $exe"; then say kept "$exe, which deploy did not bring"
    elif shared; then say kept "$exe, which another daemon here runs"
    else rm -f "$exe" && say removed "$exe"
    fi
    case $(readlink /proc/[0-9]*/exe 2>/dev/null) in
        *"$unpacked/"*) ;;
        *) [ -f "$exe" ] || { [ -d "$unpacked" ] && rm -rf "$unpacked" && say removed "$unpacked"; };;
    esac
}
take_home() {
    [ -n "$record" ] || { [ -d "$home" ] && say kept "$home, which deploy did not make"; return; }
    if recorded "dir $home"; then
        rm -rf "$home" && say removed "$home"
        return
    fi
    for name in cache coordinator coordinator.lock credentials environments instance log deployed; do
        [ -e "$home/$name" ] && rm -rf "$home/$name" && say removed "$home/$name"
    done
    for name in "$home"/* "$home"/.[!.]*; do [ -e "$name" ] && say kept "$name, which deploy did not make"; done
}
remove() {
    if grep -q " $home/" /proc/mounts 2>/dev/null; then say problem "something is mounted below $home"; return; fi
    ended 50 || {
        for pid in $(ours); do say killed "$pid $(command_of "$pid")"; done
        kill -9 $(ours) 2>/dev/null
        ended 25
    }
    if [ -n "$systemd" ] && recorded "unit $unit" && [ -f "/etc/systemd/system/$unit" ]; then
        systemctl disable "$unit" >/dev/null 2>&1
        rm -f "/etc/systemd/system/$unit" && say removed "/etc/systemd/system/$unit"
        systemctl daemon-reload >/dev/null 2>&1
        systemctl reset-failed "$unit" >/dev/null 2>&1
    fi
    groups | while IFS= read -r group; do
        rmdir "$group" 2>/dev/null && say removed "$group"
        rmdir "${group%/*}" 2>/dev/null
    done
    [ -n "$bridge" ] && [ -d "/sys/class/net/$bridge" ] && ip link delete "$bridge" 2>/dev/null &&
        say removed "the bridge $bridge"
    take_exe
    take_home
    printf '%s\n' "$record" | while read -r kind path; do [ "$kind" = dir ] && printf '%s\n' "$path"; done |
        sort -r | while IFS= read -r path; do rmdir "$path" 2>/dev/null && say removed "$path"; done
}
look() {
    recorded "dir $home" && [ -e "$home" ] && say left "$home"
    recorded "unit $unit" && [ -e "/etc/systemd/system/$unit" ] && say left "/etc/systemd/system/$unit"
    [ -n "$bridge" ] && [ -e "/sys/class/net/$bridge" ] && say left "the bridge $bridge"
    groups | lines left
    for pid in $(ours); do say left "process $pid"; done
}
remove
look
"""
"""Says what it removed, what it kept because it was not ours, and in the end what is still there.

The record goes last: what was interrupted can be run again.
"""

UNIT: Final = """\
[Unit]
Description=biruda coordinator: builds for {url}
Documentation=man:biruda(1)
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={exe} --home {home} coordinator
Environment=BIRUDA_CACHE={home}/cache
Restart=always
RestartSec=5
# what runs outlives the coordinator, and the next one finds it again
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""
