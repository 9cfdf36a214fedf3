# An IAM role for the exporter on EKS (IRSA). It can only read ECR. Set it in the chart's values:
#   serviceAccount:
#     annotations:
#       eks.amazonaws.com/role-arn: <output role_arn>

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "oidc_provider_arn" {
  description = "ARN of the EKS cluster's OIDC provider: arn:aws:iam::<account>:oidc-provider/<issuer>."
  type        = string
}

variable "namespace" {
  description = "Namespace of the Helm release."
  type        = string
  default     = "monitoring"
}

variable "service_account" {
  description = "Name of the exporter's service account."
  type        = string
  default     = "ecr-replication-exporter"
}

variable "role_name" {
  description = "Name of the role."
  type        = string
  default     = "ecr-replication-exporter"
}

variable "reader_role_arns" {
  description = "ARNs of the roles in other accounts that the exporter assumes (registries[].role_arn, destinations[].role_arn)."
  type        = list(string)
  default     = []
}

locals {
  issuer = split("oidc-provider/", var.oidc_provider_arn)[1]
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = ["system:serviceaccount:${var.namespace}:${var.service_account}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "exporter" {
  name               = var.role_name
  description        = "Reads ECR replication status for Prometheus"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "ecr" {
  name   = "read-ecr-replication"
  role   = aws_iam_role.exporter.id
  policy = file("${path.module}/../../docs/iam-policy.json")
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions   = ["sts:AssumeRole"]
    resources = var.reader_role_arns
  }
}

resource "aws_iam_role_policy" "assume" {
  count  = length(var.reader_role_arns) > 0 ? 1 : 0
  name   = "assume-readers"
  role   = aws_iam_role.exporter.id
  policy = data.aws_iam_policy_document.assume.json
}

output "role_arn" {
  description = "ARN of the role, for the service account's annotation eks.amazonaws.com/role-arn."
  value       = aws_iam_role.exporter.arn
}
