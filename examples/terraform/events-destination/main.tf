# Sends the events of replications and copies from a destination to the event bus of ../events. Apply it once in each
# destination Region of each destination account, also of the source's own account. docs/events.md explains it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "event_bus_arn" {
  description = "Output event_bus_arn of the module in the source's account and Region."
  type        = string
}

variable "name" {
  description = "Name of the rules, and the beginning of the role's name. A second source needs another one."
  type        = string
  default     = "ecr-replications"
}

variable "failed_calls" {
  description = "Whether to send failed ReplicateImage calls too. Needs a CloudTrail trail with management events here."
  type        = bool
  default     = false
}

data "aws_caller_identity" "this" {}

locals {
  # Of arn:PARTITION:events:REGION:ACCOUNT:event-bus/NAME.
  source_region  = split(":", var.event_bus_arn)[3]
  source_account = split(":", var.event_bus_arn)[4]
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "sender" {
  statement {
    actions   = ["events:PutEvents"]
    resources = [var.event_bus_arn]
  }
}

# EventBridge requires a role where the target is a bus in another account or Region.
resource "aws_iam_role" "sender" {
  name_prefix        = "${var.name}-"
  description        = "Sends events of ECR replications to the source of the images"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "sender" {
  name   = "put-events"
  role   = aws_iam_role.sender.id
  policy = data.aws_iam_policy_document.sender.json
}

resource "aws_cloudwatch_event_rule" "replications" {
  name        = var.name
  description = "Replications from the source that ended here"
  event_pattern = jsonencode({
    source      = ["aws.ecr"]
    detail-type = ["ECR Replication Action"]
    detail = {
      source-account = [local.source_account]
      source-region  = [local.source_region]
    }
  })
}

resource "aws_cloudwatch_event_target" "replications" {
  rule      = aws_cloudwatch_event_rule.replications.name
  target_id = "source"
  arn       = var.event_bus_arn
  role_arn  = aws_iam_role.sender.arn
}

resource "aws_cloudwatch_event_rule" "copies" {
  name        = "${var.name}-copies"
  description = "Deletions of images and changes of their storage class"
  event_pattern = jsonencode({
    source      = ["aws.ecr"]
    detail-type = ["ECR Image Action"]
    account     = [data.aws_caller_identity.this.account_id]
    detail      = { action-type = ["DELETE", "UPDATE_STORAGE_CLASS"] }
  })
}

resource "aws_cloudwatch_event_target" "copies" {
  rule      = aws_cloudwatch_event_rule.copies.name
  target_id = "source"
  arn       = var.event_bus_arn
  role_arn  = aws_iam_role.sender.arn
}

resource "aws_cloudwatch_event_rule" "failed" {
  count       = var.failed_calls ? 1 : 0
  name        = "${var.name}-failed"
  description = "ReplicateImage calls that failed here"
  event_pattern = jsonencode({
    source      = ["aws.ecr"]
    detail-type = ["AWS API Call via CloudTrail"]
    detail = {
      eventSource = ["ecr.amazonaws.com"]
      eventName   = ["ReplicateImage"]
      errorCode   = [{ exists = true }]
    }
  })
}

resource "aws_cloudwatch_event_target" "failed" {
  count     = var.failed_calls ? 1 : 0
  rule      = aws_cloudwatch_event_rule.failed[0].name
  target_id = "source"
  arn       = var.event_bus_arn
  role_arn  = aws_iam_role.sender.arn
}
