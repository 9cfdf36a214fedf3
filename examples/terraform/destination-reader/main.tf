# A role in a destination account. The exporter assumes it to look at the copies; it can read nothing else.
# IAM is global: apply it once per account, in any Region. Set in the exporter's configuration:
#   destinations:
#     - registry_id: "<the account>"
#       role_arn: <output role_arn>
#       external_id: <variable external_id>

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "exporter_role_arn" {
  description = "ARN of the role that the exporter runs as."
  type        = string
}

variable "external_id" {
  description = "A secret that only the exporter's configuration and this role contain."
  type        = string
  sensitive   = true
}

variable "repository_pattern" {
  description = "Names of the repositories that the exporter may read, with * for any characters."
  type        = string
  default     = "*"
}

variable "role_name" {
  description = "Name of the role."
  type        = string
  default     = "ecr-replica-reader"
}

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "AWS"
      identifiers = [var.exporter_role_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "sts:ExternalId"
      values   = [var.external_id]
    }
  }
}

data "aws_iam_policy_document" "replicas" {
  statement {
    sid     = "Replicas"
    actions = ["ecr:DescribeImages", "ecr:DescribeRepositories"]
    resources = [
      "arn:${data.aws_partition.this.partition}:ecr:*:${data.aws_caller_identity.this.account_id}:repository/${var.repository_pattern}"
    ]
  }
}

resource "aws_iam_role" "reader" {
  name               = var.role_name
  description        = "Reads replicated ECR images for Prometheus"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "replicas" {
  name   = "read-ecr-replicas"
  role   = aws_iam_role.reader.id
  policy = data.aws_iam_policy_document.replicas.json
}

output "role_arn" {
  description = "ARN of the role, for destinations[].role_arn."
  value       = aws_iam_role.reader.arn
}
