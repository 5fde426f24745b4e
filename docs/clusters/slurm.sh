#!/usr/bin/env bash
# One job: a Ray cluster over the nodes that Slurm gives, and `mmdata run` on it.
#   sbatch --nodes=8 docs/clusters/slurm.sh plan.yaml /shared/runs/own
# PLAN, catalogs, local weights and the run folder lie where all nodes see them; the same environment is active on each.
#SBATCH --job-name=mmdata
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
set -euo pipefail

plan=$1
run_dir=$2
port=${RAY_PORT:-6379}

# Whoever reaches a cluster's ports may run code on it: the token keeps others of the same network out.
token_file=$(mktemp --tmpdir="$HOME" .ray-token.XXXXXX)
chmod 600 "$token_file"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$token_file"
trap 'rm -f "$token_file"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname -I | awk '{print $1}')
cpus=${SLURM_CPUS_ON_NODE:-1}

srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}" \
  ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --include-dashboard=false --block &
for _ in $(seq 60); do  # the head answers within a minute, or mmdata says that nobody does
  if (exec 3<> "/dev/tcp/$address/$port") 2> /dev/null; then break; fi
  sleep 1
done
if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --overlap -w "$others" \
    ray start --address="$address:$port" --num-cpus="$cpus" --block &
fi

# SIGTERM comes two minutes before the limit: what is done is kept, and the same job again goes on.
mmdata run "$plan" --run-dir "$run_dir" --address "$address:$port" --workers $((cpus * ${#nodes[@]})) &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
wait "$driver" 2> /dev/null || code=$?
exit "$code"
