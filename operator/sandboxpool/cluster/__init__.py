"""What is known of the cluster, in memory: pods, nodes, classes, pools."""
