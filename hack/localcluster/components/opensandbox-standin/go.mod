module localcluster/components/opensandbox-standin

go 1.26.0
