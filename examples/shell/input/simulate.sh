#!/bin/sh
# A random walk in plain shell, as a stand-in for any program that writes files: sh simulate.sh STEPS
#
# What makes it survive an interruption:
# - It goes on where state/walk ends.
# - state/walk is written under another name and renamed, so it is whole at any moment.
# - state/SAVED is written last. In job.json it is the marker: when it is there, kelpie takes a checkpoint.
set -eu
steps=$1
mkdir -p state out

step=0 seed=42 place=0
if [ -f state/walk ]; then
    read -r step seed place < state/walk
fi
echo "starting at step $step"

while [ "$step" -lt "$steps" ]; do
    sleep 0.1  # the work
    seed=$(( (seed * 1103515245 + 12345) % 2147483648 ))
    place=$(( place + (seed / 65536) % 3 - 1 ))
    step=$(( step + 1 ))
    if [ $(( step % 10 )) -eq 0 ] || [ "$step" -eq "$steps" ]; then
        echo "$step $seed $place" > state/walk.new
        mv state/walk.new state/walk
        echo "$step" > state/SAVED
    fi
done

echo "after $steps steps at $place" > out/result.txt
