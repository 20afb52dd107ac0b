# resolve.sh dig|busybox NAME…: the same by a command line tool; lines as resolve.c writes them.
tool=$1
shift
for name; do
    start=$(date +%s%N)
    case $tool in
    # The tools ask for one type at a time, as people do.
    dig) found=$(dig +short +search +tries=1 +time=3 "$name" A; dig +short +search +tries=1 +time=3 "$name" AAAA) ;;
    busybox) found=$(busybox nslookup "$name" 2>/dev/null | sed -n '1,2d; s/^Address[ 0-9]*: *//p') ;;
    esac
    echo "$name" $((($(date +%s%N) - start) / 1000)) ${found:-!nothing}
done
