docker-entrypoint.sh rabbitmq-server &
rabbitmqctl wait /run/pid
[ -z "$CLUSTER_WITH" ] || rabbitmqctl join_cluster "rabbit@$CLUSTER_WITH"
wait
